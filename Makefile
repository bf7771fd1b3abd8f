# Everything runs in .venv, which is made and filled on the first call and used again afterwards.
# A change of setup.py or constraints.txt installs again.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   ?= .venv
PY     := $(VENV)/bin/python
DEMO   := shelfmark-demo
PICTURES := $(DEMO)/work/demo_catalog/query_pictures

ENGINES := .engines

.PHONY: help demo test lint format clean train-demo-encoder engines flink-test spark-test dataflow-test
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed  ## index the drawn catalog of 3,000 products, search it, measure the encoder
	$(PY) -m pipelines.embed_catalog --runner=DirectRunner
	$(PY) -m pipelines.search --index $(DEMO)/index -k 5 "striped blue mug"
	$(PY) -m pipelines.search --index $(DEMO)/index -k 5 --image $(PICTURES)/striped_red_mug.png
	$(PY) -m pipelines.search --index $(DEMO)/index -k 5 --image $(PICTURES)/floral_purple_dress.png "dress for summer"
	$(PY) -m pipelines.evaluate

# Processes of the whole suite; each takes a core and 2.5 GB. A file's tests share fixtures, and stay in one of them.
WORKERS ?= $(if $(TESTS),0,2)
test: $(VENV)/.installed-test  ## the whole test suite; one file: make test TESTS=tests/encoders/test_model.py
	$(PY) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=15 $(TESTS)

lint: $(VENV)/.installed-dev  ## ruff, mypy and hadolint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/hadolint Dockerfile

format: $(VENV)/.installed-dev  ## let ruff write what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

train-demo-encoder: $(VENV)/.installed-test  ## draw the training pairs and train encoders/pretrained/demo again
	$(PY) -m pipelines.demo_catalog --out $(DEMO)/training_pairs --pairs 60000
	$(PY) -m pipelines.train_encoder --out encoders/pretrained/demo

flink-test: $(VENV)/.installed-test $(ENGINES)/flink/.complete $(ENGINES)/flink-job-server/.complete  ## the job on a Flink cluster of this machine (Java, Maven)
	$(PY) -m pytest -q tests/engines/test_flink.py

spark-test: $(VENV)/.installed-test $(ENGINES)/spark/.complete $(ENGINES)/spark-job-server/.complete  ## the same on Spark
	$(PY) -m pytest -q tests/engines/test_spark.py

dataflow-test: $(VENV)/.installed-test $(ENGINES)/dataflow/.complete  ## the job up to its submission to Dataflow
	$(PY) -m pytest -q tests/engines/test_dataflow.py

engines: $(addprefix $(ENGINES)/,$(addsuffix /.complete,flink flink-job-server spark spark-job-server dataflow))  ## fetch what the three need, about 1.5 GB

clean:  ## remove what the commands above made, .venv included
	rm -rf $(VENV) $(ENGINES) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	  || { echo "error: Python 3.11 or 3.12 is needed, found $$($(PYTHON) --version); name one: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# base < test < dev: who has the larger set has the smaller ones.
$(VENV)/.installed: STAMPS := .installed
$(VENV)/.installed-test: EXTRAS := [test]
$(VENV)/.installed-test: STAMPS := .installed .installed-test
$(VENV)/.installed-dev: EXTRAS := [dev]
$(VENV)/.installed-dev: STAMPS := .installed .installed-test .installed-dev
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-dev: $(VENV)/.created setup.py constraints.txt
	@echo "Installing Shelfmark$(EXTRAS) and the libraries it was tested with into $(VENV): some minutes the first time"
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.$(EXTRAS)'
	@cd $(VENV) && touch $(STAMPS)

# The jars of an engine: its own from the Python registry, and those of Beam's job server from the Java one.
FLINK := apache-flink-libraries==1.19.3
SPARK := pyspark==3.5.9
$(ENGINES)/flink/.complete $(ENGINES)/spark/.complete: $(ENGINES)/%/.complete: | $(VENV)/.created
	@echo "Fetching $* into $(@D)"
	@rm -rf $(@D) && mkdir -p $(@D)/download
	@$(PY) -m pip download --quiet --disable-pip-version-check --no-deps --dest $(@D)/download '$(if $(filter flink,$*),$(FLINK),$(SPARK))'
	@tar -xzf $(@D)/download/*.tar.gz --strip-components=2 -C $(@D) --wildcards \
	  $(if $(filter flink,$*),'*/deps/lib/flink-dist-*' '*/deps/lib/log4j-*','*/deps/jars/*' '*/deps/bin/*')
	@rm -rf $(@D)/download && touch $@
$(ENGINES)/%-job-server/.complete: tests/engines/%_job_server.xml
	@echo "Fetching Beam's job server for $* into $(@D)"
	@rm -rf $(@D)
	@mvn --batch-mode --quiet --file $< dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory=$(abspath $(@D))
	@touch $@
# Google's packages, beside those of .venv and apart from them: they make every import of Beam slower.
$(ENGINES)/dataflow/.complete: constraints.txt | $(VENV)/.installed-test
	@echo "Installing what Dataflow needs into $(@D)"
	@rm -rf $(@D) && $(PY) -m venv --without-pip $(@D)
	@$(PY) -c 'import site; print(site.getsitepackages()[0])' > "$$($(@D)/bin/python -c 'import site; print(site.getsitepackages()[0])')/venv.pth"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'apache-beam[gcp]'
	@touch $@
