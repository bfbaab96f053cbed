# Two images, each one program on a base without a shell:
#   docker build --target proxy    -t outrigger-proxy .
#   docker build --target operator -t outrigger-operator .

FROM docker.io/library/rust:1.95-bookworm AS build
ARG PROFILE=release
WORKDIR /build
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY policy policy
COPY proxy proxy
COPY operator operator
# The system tests are a member of the workspace, but no part of the images: of them only the manifest is here, less
# the targets it names, so that a change to a test builds nothing.
COPY tests/Cargo.toml tests/
RUN mkdir tests/src && touch tests/src/lib.rs && sed -i '/^\[\[/,/^$/d' tests/Cargo.toml
# The caches outlive the build. Cargo goes by modification times, which another checkout's files may have older
# than the cache: touched, the workspace's own crates are always built from the sources that were copied here.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    mkdir /out \
    && find policy proxy operator -name '*.rs' -exec touch {} + \
    && cargo build --locked --profile "$PROFILE" --package outrigger-proxy --package outrigger-operator --bins \
    && if [ "$PROFILE" = dev ]; then directory=debug; else directory=$PROFILE; fi \
    && for program in outrigger-proxy outrigger-operator; do \
         strip --strip-debug -o "/out/$program" "target/$directory/$program"; \
       done

FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
# By number, so that Kubernetes can tell that it is not root.
USER 65532:65532
WORKDIR /

FROM runtime AS proxy
COPY --from=build /out/outrigger-proxy /usr/local/bin/
EXPOSE 8000 9900
ENTRYPOINT ["/usr/local/bin/outrigger-proxy"]

FROM runtime AS operator
COPY --from=build /out/outrigger-operator /usr/local/bin/
EXPOSE 8443 9443 9900
ENTRYPOINT ["/usr/local/bin/outrigger-operator"]
