//! Compiles the protocol without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        [
            "envoy/service/discovery/v3/ads.proto",
            "merlon/v1/identity.proto",
            "merlon/v1/inspection.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure()
        // It contains a join token. `lib.rs` implements `Debug` without it.
        .skip_debug([".merlon.v1.IssueRequest"])
        .compile_fds(files)?;
    Ok(())
}
