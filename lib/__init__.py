"""The companion's library, one module per noun of the data flow.

files         paths of the project, hashes, and writes that never leave half a file
graph         which file makes which, for make
cluster       several workers: Ray actors, here or on a cluster
processes     independent calls on all cores, as many as memory allows
sources       where base prompts come from: shipped files, pinned downloads, a user's CSV
corpora       texts that SAEs are trained on
datasets      base prompts -> normalised, augmented, split prompt table
chat          chat templates: prompts, the end of the user's turn, dialogues
models        any Hugging Face or packaged model as a TransformerBridge
stores        folders of checksummed safetensors shards that resume
forward       batched forward passes that stop at a layer
activations   residual-stream activations: pooled per prompt, or per token
rollouts      the model's own responses to prompts
token_blocks  training tokens in shuffled blocks, from disk or straight from the model
jumprelu      sparse-exact JumpReLU steps and the sparsity penalties
sae           SAEs as SAELens objects: saved, loaded, checked, measured
recipes       what decides an SAE's training, and the interface of a trainer
comparators   SAELens' Gated, TopK, BatchTopK and Matryoshka as trainers
trainers      the JumpReLU trainer, from scratch or from an SAE that is finetuned
sae_training  the training loop, checkpoints and resume
metrics       AUROC, recall at a false-positive rate, bootstrap over base prompts
splice        language-model loss with an SAE spliced in
finetuning    chat SAEs: how they begin, and what finetuning changes
pareto        SAE architectures compared at matched L0
probes        dense probes and their lexical baseline
latents       SAE latents of prompts, pooled and sparse
ksparse       k columns chosen on the training split, refitted without penalty
draws         bootstrap draws as tables: means over seeds, shares of a gap
sparse_probing  every probe on an SAE, and its controls
stress        probes with few or mislabelled training prompts
examples      text sequences with a latent's activations, for explaining and for scoring
judges        what explains a latent; the offline n-gram judge
llm           a judge behind an OpenAI-compatible server
refusals      how often a chat model refuses, by jailbreak
populations   means over all latents from a stratified sample
autointerp    auto-interp scores, uniform and weighted by frequency
artefacts     known artefacts planted in texts, and the characters they change
readings      texts with the characters of each token, and every unit's peak
debugging     what a probe would cheat on: ranked latents, exposed artefacts
cards         latents as HTML: examples, frequency, score, explanation
figures       every figure of the notebooks
records       what a notebook run found, as JSON and parquet
scorecard     the paper's claims, decided by their rules from the records
pretrained    the shipped base SAE, made anew
sizing        tokens, disk, memory and hours of a profile, before it starts
profiles      flat YAML files of parameters, and the check of values
runner        headless notebooks: papermill, profiles, atomic outputs
kernels       a kernel that stays, for many notebooks
storage       results in a folder or under a URL that all machines reach
cells         a sweep's cells: a grid over notebooks' parameters, what cells share made once
sweeps        run the cells on several workers; one table and one figure
report        a static site from executed notebooks

Imports point one way, a module uses only modules above it; tests/unit/test_structure.py holds them to it.
"""
