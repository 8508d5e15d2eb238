"""The companion's library, one module per noun of the data flow.

files        paths of the project, hashes, and writes that never leave half a file
sources      where base prompts come from: shipped files, pinned downloads, a user's CSV
datasets     base prompts -> normalised, augmented, split prompt table
models       any Hugging Face or packaged model as a TransformerBridge
activations  residual-stream activations: pooled per prompt, or per token, resumable
metrics      AUROC, recall at a false-positive rate, cluster bootstrap
probes       dense probes and their lexical baseline
figures      every figure of the notebooks
records      what a notebook run found, as JSON and parquet
graph        which file makes which, for make
runner       headless notebooks: papermill, profiles, atomic outputs

Imports point one way, down this list's data flow; tests/unit/test_structure.py holds them to it.
"""
