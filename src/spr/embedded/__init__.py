"""The embedded default: a scene generator and small models of the real transformers classes, trained on its scenes.

`spr.embedded.scenes` needs numpy and pillow only; torch and transformers are imported by the modules that use them.
"""
