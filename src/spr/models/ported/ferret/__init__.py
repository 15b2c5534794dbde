"""Ferret (arXiv 2310.07704) as classes of transformers: it reads regions of any shape and answers with boxes.

`configuration` and `modeling` are the model, `sampler` its spatial-aware visual sampler, `regions` the shapes that it
reads, `processing` and `tokenizer` its inputs. `published` reads folders as its authors laid them out, and `convert`
turns those, or Vicuna and the published delta, into a folder that ``from_pretrained`` loads.
"""
