import torch

torch.set_num_threads(1)  # tiny batches, shared cores: more threads only wait for each other
