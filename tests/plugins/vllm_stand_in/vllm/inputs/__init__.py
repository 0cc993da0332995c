"""vllm.inputs."""
