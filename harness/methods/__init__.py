"""Fine-tuning methods, one plug-in each; ``catalog`` lists them."""
