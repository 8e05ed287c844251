# Two images:
#   docker build --target light -t edgeopt:light .    fetches, verifies, lists, lints, plans
#   docker build --target full -t edgeopt:full .      everything, with the CPU build of PyTorch
# A folder with recipe, model and data:
#   docker run --rm -v "$PWD:/work" edgeopt:full edgeopt optimize recipe.yaml

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM python:3.11-slim-bookworm AS light
COPY constraints.txt /wheel/
COPY --from=wheel /wheel/ /wheel/
RUN pip install --no-cache-dir --constraint /wheel/constraints.txt /wheel/*.whl \
 && useradd --create-home --uid 1000 edgeopt
USER edgeopt
WORKDIR /work
CMD ["edgeopt", "--help"]

FROM light AS full
USER root
RUN pip install --no-cache-dir --constraint /wheel/constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu "$(echo /wheel/*.whl)[all,cluster]"
USER edgeopt
