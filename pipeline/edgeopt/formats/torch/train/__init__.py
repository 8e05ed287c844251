"""Fine-tuning by distillation, with fake quantization."""
