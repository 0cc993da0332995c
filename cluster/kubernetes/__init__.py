"""Jobs on Kubernetes, by KubeRay."""
