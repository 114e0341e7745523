"""Bytes that autograd itself saves of a forward pass."""

import torch

from fedmoe.data.text import Tokens, collate
from fedmoe.models.together import Together
from fedmoe.training.loss import response_loss
from fedmoe.training.side_by_side import losses


def kept_bytes(model, setting, vocabulary):
    """Bytes that autograd keeps of a forward pass, each storage once, weights and adapter not.

    In a pass of several clients all of them have the same rows.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (setting.batch_size, setting.length + 1)
    ids = torch.randint(2, vocabulary, shape, generator=generator).tolist()
    rows = [Tokens(tuple(row), setting.length + 1 - setting.targets) for row in ids]
    batch, several = collate(rows, 0), setting.clients > 1
    together = Together(model, model.layout, [setting.top_k] * setting.clients) if several else None
    own = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
    own.add(model.flat.untyped_storage().data_ptr())
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive: no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if together:
            found = [*losses(together, dict.fromkeys(range(setting.clients), batch))]
        else:
            found = response_loss(model, batch)
    del found
    return sum(size for size, _ in kept.values())
