"""Triton kernels run in the interpreter where there is no GPU to run them on."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, at its first import
