"""A pretended CUDA device: torch's own CUDA tensors, computed by the CPU, on a machine without a GPU or a driver.

*Real*: the tensors. A tensor on the pretended device is a plain ``torch.Tensor`` with ``device == cuda:N``, CUDA
dispatch keys and a CUDA storage; it goes through torch's dispatcher, autograd engine, autocast, optimizers and c10d as
on a machine with a GPU. ``.numpy()``, mixed devices, ``torch.from_numpy`` beside it, wrong ``device.type`` branches
fail by torch's own code.

*Pretended*: its memory is the host's, and each CUDA kernel is replaced by a Python kernel that (1) applies the rules
that the CUDA kernel applies (devices of its arguments, as native_functions.yaml says for that very operator; device of
the generator), (2) counts, (3) makes aliases of its arguments on the CPU, calls the CPU kernel, and labels the results
CUDA. Relabelling copies nothing: a DLPack capsule whose device field is overwritten.

What fails here as it would on a GPU:

- tensors on different devices (but for the zero-dimensional CPU tensors that TensorIterator takes, and CPU indices);
- a generator of another device; ``.numpy()`` of a device tensor; an operator without a CUDA kernel;
- memory that runs out (``torch.OutOfMemoryError`` at a chosen size), so that code that halves its batches is run;
- a read of memory that was never written (``torch.empty`` holds NaN or the largest integer);
- a copy to the host that is read before it is waited for (it holds the same until then);
- a pinned source that changes before its asynchronous copy is waited for;
- two streams that touch one memory without an event between them, and memory that is freed while another stream uses
  it without ``record_stream``.

What cannot fail here: CUDA's own arithmetic (TF32, reduced precision, order of atomics), speed, the driver (its part of
graphs too), cuDNN, cuFFT and cuBLAS, Triton and torch.compile, NCCL (its place takes gloo on the aliases).

How it is run, and with which versions of torch: README.md of this folder.
"""
