"""What saving the state costs: one copy of the state, and nothing more when it is put back."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cyclr.torch import SavedState


class Allocated(TorchDispatchMode):
    """Bytes of the tensors that come out of operators and share no memory with what went in."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        taken = {t.untyped_storage().data_ptr() for t in args if torch.is_tensor(t)}
        if torch.is_tensor(result) and result.untyped_storage().data_ptr() not in taken:
            self.most += result.untyped_storage().nbytes()
        return result


def test_the_copy_is_as_large_as_the_state_and_no_larger():
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64))
    net.append(net[0])  # tied: kept once
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(8, 64)).sum().backward()
    optimizer.step()
    state = [*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters())]
    state += [slot for slots in optimizer.state.values() for slot in slots.values()]
    with Allocated() as allocated:
        saved = SavedState([net, optimizer])
    assert allocated.most == sum(tensor.numel() * tensor.element_size() for tensor in state)
    with Allocated() as allocated:
        saved.restore()
    assert allocated.most == 0
