# The node agent's image: the program alone, on a base without a shell.
#
#     docker buildx build --platform linux/amd64,linux/arm64 --tag REPOSITORY:TAG --push .
#
# Each platform compiles as itself, on a node of its own or emulated: to compile for another one, ring's C and assembly
# would need a second compiler here.

# The bases are arguments so that a mirror or a digest can take their place. The runtime's glibc must not be older than
# the one that the program was linked with: take both from one release of Debian.
ARG BUILD_IMAGE=docker.io/library/rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12

FROM ${BUILD_IMAGE} AS build
WORKDIR /src

# First the dependencies, from the manifests alone: a change in src then reuses this layer. Cargo wants something to
# compile in every package of the workspace, also in the emulator, which is for tests and never compiled here.
# No cache mounts: a layer can be kept by any builder, they stay behind on one machine.
COPY Cargo.toml Cargo.lock ./
COPY tests/ecr-emulator/Cargo.toml tests/ecr-emulator/
RUN mkdir -p src benches examples tests/ecr-emulator/src \
    && echo '//! Empty.' >src/lib.rs \
    && echo '//! Empty.' >tests/ecr-emulator/src/lib.rs \
    && printf '//! Empty.\nfn main() {}\n' >src/main.rs \
    && sed -n '/^\[\[bench\]\]$/{n;s/^name = "\(.*\)"$/benches\/\1.rs/p};/^\[\[example\]\]$/{n;s/^name = "\(.*\)"$/examples\/\1.rs/p}' \
        Cargo.toml | xargs -n 1 cp src/main.rs \
    && cargo build --package ecr-node-agent --bin ecr-node-agent --release --locked

COPY src src
# COPY keeps the files' times, and cargo takes a source older than its last build for unchanged: without `touch` the
# empty program from above could end up in the image.
RUN touch src/lib.rs src/main.rs \
    && cargo build --package ecr-node-agent --bin ecr-node-agent --release --locked

FROM ${RUNTIME_IMAGE}

# Where the sources are, for tools that lead from an image to them.
ARG SOURCE=
LABEL org.opencontainers.image.title="ecr-node-agent" \
      org.opencontainers.image.description="Keeps a Kubernetes node's Amazon ECR credentials fresh in the file that the kubelet reads" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}"

# On the PATH, so that `kubectl exec POD -- ecr-node-agent status` works. Nobody has a reason to write it.
COPY --from=build --chmod=0555 /src/target/release/ecr-node-agent /usr/bin/ecr-node-agent

# Root, said aloud so that a base with another default does not change it: the auth file and the kubelet's folder around
# it are root's, and the file's owner is kept when it is replaced.
# hadolint ignore=DL3002
USER 0:0

# The program itself is process 1, without a shell in between, and so gets the kubelet's SIGTERM.
ENTRYPOINT ["/usr/bin/ecr-node-agent"]
