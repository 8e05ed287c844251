"""Reading and writing checkpoints, modules, exported programs and TorchScript."""
