# Workers and worker pools of Flink, Spark and Dataflow. Two images from one file:
#
#   docker build --target cpu --tag shelfmark/worker:cpu .
#   docker build --target gpu --tag shelfmark/worker:gpu .
#
# The Python of the submitting process and of the workers must be of one minor version, and all packages the same: the
# run asks its workers first. Change PYTHON and build both from the same commit.
ARG PYTHON=3.11
ARG BEAM=2.77.0

FROM apache/beam_python${PYTHON}_sdk:${BEAM} AS beam

FROM python:${PYTHON}-slim AS cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
WORKDIR /opt/shelfmark
COPY setup.py pyproject.toml README.md LICENSE MANIFEST.in constraints.txt ./
COPY encoders ./encoders
COPY index_builder ./index_builder
COPY pipelines ./pipelines
COPY run_configs ./run_configs
RUN pip install --constraint constraints.txt '.[s3,gcs,minilm,serve]' \
 && python -c "import pipelines.indexing.transforms, encoders.saved_encoder"
# /opt/apache/beam/boot: what a runner starts in a container, and `--container_executable` of a worker pool.
COPY --from=beam /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]

# torch from PyPI brings CUDA itself; the driver comes from the machine.
FROM cpu AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip uninstall --yes faiss-cpu \
 && pip install --no-deps 'faiss-gpu>=1.14'
