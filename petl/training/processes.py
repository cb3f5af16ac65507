"""The processes of one training: their devices, how they meet, and what they share."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from functools import cache

import numpy as np
import psutil
import torch
from torch import Tensor, distributed


def device() -> torch.device:
    """Return the GPU that this process was given, its current one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare_process() -> None:
    """Set what libraries read when they are imported: call it before transformers is.

    No chatter, no threads of the tokenizer's own, no telemetry.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if device().type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(all_gather_into|reduce_scatter)_tensor.*", category=FutureWarning)


@cache
def _own_store() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the file over which a process joins itself; it is removed with the process."""
    return tempfile.TemporaryDirectory(prefix="petl-store-")


def join_process_group(
    rank: int = 0, world_size: int = 1, init_method: str = "", local_rank: int = 0, host: str = "127.0.0.1"
) -> None:
    """Make this process number `rank` of `world_size`, which then train together; a second call does nothing.

    `init_method` is where they meet, as torch writes it: `tcp://host:port`, or `file://` and a path
    that all see and that does not exist yet. A process on its own needs none: it has a file of its
    own, and so no port to collide on. `local_rank` numbers the GPUs that this process sees: 0 where
    it sees only its own. `host` is the address of this machine at which the others reach it; collectives listen on
    its interface alone, unless GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME name another (what listens at a tcp://
    meeting place is torch's TCPStore, on all interfaces). Variables such as RANK are
    set for DeepSpeed, never read: what a launcher around this process meant by them is its own affair.

    Raises ValueError for a rank outside the group, and for a group with nowhere to meet.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"a rank lies in [0, world size); received rank {rank} of {world_size}")
    if world_size > 1 and not init_method:
        raise ValueError(f"{world_size} processes need an init_method to meet at, such as tcp://host:port")
    if distributed.is_initialized():
        return
    import deepspeed
    import deepspeed.ops

    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    else:
        # Otherwise init_distributed compiles this op for half a minute, and a stale lock hangs it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if interface := _interface(host):
        for library in ("GLOO", "NCCL"):  # which else go by the machine's name, to whatever address that has
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", interface)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(world_size))
    deepspeed.init_distributed(
        "gloo" if device().type == "cpu" else "nccl",
        auto_mpi_discovery=False,
        rank=rank,
        world_size=world_size,
        init_method=init_method or f"file://{_own_store().name}/store",
        verbose=False,
    )


def open_meeting_place(host: str) -> tuple[str, object]:
    """Return a `tcp://` place on this host where rank 0, this process, can meet others, and the server behind it.

    The server holds its port from here on, so that no other process can take the port before the ranks meet: torch
    shares a multi-tenant server within a process, and the process group of rank 0 finds this one while it is referred
    to.
    """
    store = distributed.TCPStore(host, 0, is_master=True, wait_for_workers=False, multi_tenant=True)  # type: ignore[attr-defined]
    return f"tcp://{host}:{store.port}", store


def _interface(address: str) -> str:
    """Return the network interface that has an address; "" where none has."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, addresses in interfaces if any(entry.address == address for entry in addresses)), "")


def rank() -> int:
    """Return this process's number in its group; 0 without one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together; 1 without a group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(rows: np.ndarray) -> np.ndarray:
    """Return this rank's rows of a batch to evaluate; none where there are fewer rows than ranks.

    Every world-th one, since batches are sorted by length: all ranks get like lengths.
    """
    return rows[rank() :: world_size()]


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the sum of all ranks' tensors, on each of them. Collective; the tensor itself in a group of one."""
    if world_size() == 1:
        return tensor
    total = tensor.to(device(), copy=True)
    distributed.all_reduce(total)
    return total.to(tensor.device)
