"""MLflow registry: the study's runs, the front's versions, and the evidence that each version carries."""
