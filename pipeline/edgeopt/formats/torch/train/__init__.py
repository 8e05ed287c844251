"""Fine-tuning by distillation, and quantization-aware training."""
