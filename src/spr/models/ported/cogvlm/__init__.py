"""CogVLM-17B as transformers classes. Published weights load under their own names, without remote code.

Wang et al., "CogVLM: Visual Expert for Pretrained Language Models", arXiv 2311.03079.
"""
