"""drum-GPT: language models are drummers.

Zhang, Callison-Burch. Language Models are Drummers: Drum Composition with Natural Language Pre-Training.
AAAI-23 workshop Creative AI Across Modalities, arXiv 2301.01162.
"""
