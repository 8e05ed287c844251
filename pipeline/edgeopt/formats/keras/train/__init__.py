"""Fine-tuning by distillation."""
