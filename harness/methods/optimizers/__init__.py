"""Full fine-tuning whose optimizer state is small."""
