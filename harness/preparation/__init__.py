"""What a suite needs before training: data, tokenizers, encoders, the evaluator."""
