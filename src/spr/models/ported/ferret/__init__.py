"""Ferret (arXiv 2310.07704) as transformers classes. It reads regions of any shape and answers with boxes.

`configuration` and `modeling` define the model, `sampler` its spatial-aware visual sampler, `regions` the shapes of
regions, `processing` and `tokenizer` the inputs. `published` reads folders in the authors' layout, and `convert` writes
those, or Vicuna with the published delta, as a folder that ``from_pretrained`` loads.
"""
