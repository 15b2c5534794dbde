"""Tests of the quickstart's line about its method; the whole quickstart is run by tests/commands/test_cli.py."""

from spr.config import load_config
from spr.embedded.quickstart import method


def test_the_line_about_the_method_says_what_the_config_says():
    assert method(load_config("quickstart")) == (
        "Method: descriptions per region 2 full, 2 crop, 2 crop_objects; λ 0.8; detector owlv2; "
        "pairing.unmatched remove_box; dpo with β 1, NLL weight 0; epochs 3"
    )


def test_parts_that_are_switched_off_show():
    changes = [
        "describer.samples.crop=0",
        "detector.backend=none",
        "scoring.semantic_weight=0",
        "training.nll_weight=2",
    ]
    assert method(load_config("quickstart", changes)) == (
        "Method: descriptions per region 2 full, 2 crop_objects; λ 0; detector none; "
        "pairing.unmatched remove_box; dpo with β 1, NLL weight 2; epochs 3"
    )
