"""The shortest way into Hugging Face's Trainer and Accelerate, and into Lightning.

One module for each; only the one you import needs its framework: `huggingface`, `accelerate`,
`lightning`.
"""
