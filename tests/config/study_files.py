"""The texts of a small study."""

GOOD = """\
name: mine
seed: 3
task:
  factory: task.py:make
  arguments: {depth: 8}
space: space.yaml
target: {kind: onnxruntime-cpu, threads: 2}
objectives: [accuracy, latency_ms]
constraints: {accuracy: {min: 0.8}, size_bytes: {max: 100000}}
search:
  trials: 24
  sampler: {kind: nsga2, population_size: 12}
  recovery_epochs: 1e-1
finalists: {count: 4}
"""
SPACE = """\
groups:
  strategy: [structured, none]
  sparsity: {low: 0.0, high: 0.9, step: 0.1}
layers:
  bits: {choices: [32, 8], per: layer}
"""
TASK = "raise SystemExit('a study file is checked without importing its task')\ndef make(depth): ...\n"
