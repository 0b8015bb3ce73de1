# skinvl with all that training and evaluation need, the versions of constraints.txt. PyPI's torch brings CUDA with it;
# the machine brings the driver: docker run --gpus all -v "$PWD:/work" skinvl sft tiny
# Never built where it was written: a test holds it to pyproject.toml and constraints.txt, and no more.
# EXTRAS: those of pyproject.toml, such as demo,vllm; flash needs nvcc, which this image has not.
FROM python:3.11-slim
ARG EXTRAS=
# A compiler for what DeepSpeed builds when it is first used.
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE /skinvl/
COPY skinvl /skinvl/skinvl
COPY data_prep /skinvl/data_prep
COPY recipes /skinvl/recipes
COPY ds_configs /skinvl/ds_configs
RUN pip install --no-cache-dir --constraint /skinvl/constraints.txt "/skinvl[${EXTRAS}]"
WORKDIR /work
ENTRYPOINT ["skinvl"]
