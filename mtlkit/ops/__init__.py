"""Compiled operations on tensors, for models and training; a file each.

A file holds, in this order and as far as the operation has it: the formula, the plain PyTorch form,
the kernel, the autograd function, and the public function, which chooses between the two forms with
:func:`_dispatch.use_kernel`. Kernels that need no tensors stand where they are used: in
``balancers/_solvers.py``, ``data/auc.py`` and ``data/ali_ccp/``.
"""
