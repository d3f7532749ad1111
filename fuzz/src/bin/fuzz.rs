//! Runs the target that `MERLON_FUZZ_TARGET` names, with libFuzzer. Without it, lists the targets: name, maximum length
//! of an input, dictionary.
#![no_main]

use std::{env, fs, path::PathBuf, process::exit, sync::OnceLock};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use merlon_fuzz::{TARGETS, find};

static RUN: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(init: select(), |bytes: &[u8]| {
    if let Some(run) = RUN.get() {
        run(bytes);
    }
});

fn select() {
    let Ok(name) = env::var("MERLON_FUZZ_TARGET") else {
        for target in TARGETS {
            println!("{} {} {}", target.name, target.max_len, target.dictionary);
        }
        exit(0);
    };
    let Some(target) = find(&name) else {
        eprintln!("error: there is no fuzz target `{name}`");
        exit(2);
    };
    RUN.get_or_init(|| target.run);
}

/// The files of the folder in `MERLON_FUZZ_SEEDS`. Without coverage counters, libFuzzer does not know which inputs are
/// worth changing, and would only change an empty one; so most inputs are made from a seed.
static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();

fn load_seeds() -> Vec<Vec<u8>> {
    let Some(folder) = env::var_os("MERLON_FUZZ_SEEDS") else {
        return Vec::new();
    };
    let files = fs::read_dir(PathBuf::from(folder)).expect("the folder of the seeds");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a seed").path()).collect();
    files.sort();
    files
        .iter()
        .map(|file| fs::read(file).expect("a seed"))
        .collect()
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let seeds = SEEDS.get_or_init(load_seeds);
    let number = usize::try_from(seed / 4).unwrap_or_default();
    let mut size = size;
    if !seeds.is_empty() && (size <= 1 || seed % 4 == 0) {
        let from = &seeds[number % seeds.len()];
        size = from.len().min(max_size);
        data[..size].copy_from_slice(&from[..size]);
    }
    fuzzer_mutate(data, size, max_size)
});
