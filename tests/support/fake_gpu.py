"""A GPU of shapes without values: what asks it for a value fails."""

from contextlib import ExitStack, contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fedmoe.models.private import replaced

GPU = torch.device("cuda:0")


class FakeGPU(FakeTensorMode):
    """Puts on the GPU what torch's own code, which is told `meta`, makes there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("device") == torch.device("meta"):
            kwargs = kwargs | {"device": GPU}
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def fake_gpu():
    """Let tensors that are made on `GPU` inside be fake, and fail where the host reads one.

    A torch without CUDA has no guard for such tensors, without which autograd does not record
    them: so their class says `cuda` in Python, to the fake mode too, and `meta` in C++ (2.13).
    """
    make = torch.Tensor._make_subclass

    def unguarded(*args, dispatch_device=False, **options):
        return make(*args, **options)

    with ExitStack() as stack:
        if not torch.cuda.is_available():
            stack.enter_context(replaced(torch.Tensor, "_make_subclass", staticmethod(unguarded)))
        stack.enter_context(FakeGPU(allow_non_fake_inputs=True))
        yield


def move(model):
    """Put an adapted model on the fake GPU, in place."""
    for module in model.model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(_on_gpu(parameter), False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = _on_gpu(buffer)
    model.device, model.rescaler = GPU, _on_gpu(model.rescaler)
    model.bind(model.layout)


def _on_gpu(x):
    return torch.empty(x.shape, dtype=x.dtype, device=GPU)
