# Two images, each one program on a base without a shell:
#   docker build --target proxy    -t outrigger-proxy .
#   docker build --target operator -t outrigger-operator .

FROM docker.io/library/rust:1.95-bookworm AS workspace
WORKDIR /build
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY policy policy
COPY telemetry telemetry
# Of the other members only the manifests, less the targets they name: a change to one program, or to a test, does not
# build the other program.
COPY proxy/Cargo.toml proxy/
COPY operator/Cargo.toml operator/
COPY tests/Cargo.toml tests/
RUN for member in proxy operator tests; do \
         mkdir "$member/src" && touch "$member/src/lib.rs" && sed -i '/^\[\[/,/^$/d' "$member/Cargo.toml" || exit 1; \
       done

# The caches outlive the build. Cargo goes by modification times, which another checkout's files may have older
# than the cache: touched, the workspace's own crates are always built from the sources that were copied here.
FROM workspace AS build-proxy
ARG PROFILE=release
COPY proxy proxy
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    find policy telemetry proxy -name '*.rs' -exec touch {} + \
    && cargo build --locked --profile "$PROFILE" --package outrigger-proxy --bins \
    && strip --strip-debug -o /outrigger-proxy "$(ls -t target/*/outrigger-proxy | head -n 1)"

# The operator waits for the network: what link-time optimisation brings it is not worth minutes.
FROM workspace AS build-operator
ARG PROFILE=release
COPY operator operator
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    find policy telemetry operator -name '*.rs' -exec touch {} + \
    && cargo build --locked --profile "$PROFILE" --config 'profile.release.lto="off"' \
         --package outrigger-operator --bins \
    && strip --strip-debug -o /outrigger-operator "$(ls -t target/*/outrigger-operator | head -n 1)"

FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
WORKDIR /

FROM runtime AS proxy
COPY --from=build-proxy /outrigger-proxy /usr/local/bin/
EXPOSE 8000 9900
ENTRYPOINT ["/usr/local/bin/outrigger-proxy"]

FROM runtime AS operator
COPY --from=build-operator /outrigger-operator /usr/local/bin/
EXPOSE 8443 9443 9900
ENTRYPOINT ["/usr/local/bin/outrigger-operator"]
