"""Reading and writing of checkpoints, modules, exported programs and TorchScript."""
