"""The side-by-side benchmark: peers and ours under the same load, in interleaved rounds."""
