//! Runs every target over its seeds, so that the targets compile and hold in every `cargo test`.

use std::{
    collections::BTreeSet,
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use merlon_fuzz::{TARGETS, Target};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The names in a folder of this crate, sorted.
fn entries(name: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

fn seeds(target: &Target) -> Vec<PathBuf> {
    let place = format!("seeds/{}", target.name);
    entries(&place)
        .into_iter()
        .map(|name| folder(&place).join(name))
        .collect()
}

#[test]
fn every_target_holds_for_each_of_its_seeds() {
    let mut failures = Vec::new();
    for target in TARGETS {
        for seed in seeds(target) {
            let bytes = fs::read(&seed).unwrap();
            if catch_unwind(|| (target.run)(&bytes)).is_err() {
                failures.push(seed);
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn every_target_has_seeds_within_its_maximum_length_and_every_folder_of_seeds_has_a_target() {
    let names: BTreeSet<String> = TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect();
    assert_eq!(names.len(), TARGETS.len(), "a name is used twice");
    assert_eq!(entries("seeds"), names);
    let mut total = 0;
    for target in TARGETS {
        let seeds = seeds(target);
        assert!(!seeds.is_empty(), "`{}` has no seeds", target.name);
        for seed in seeds {
            let length = usize::try_from(fs::metadata(&seed).unwrap().len()).unwrap();
            assert!(
                length <= target.max_len,
                "{}: {length} bytes",
                seed.display()
            );
            total += length;
        }
    }
    assert!(total < 1 << 20, "all seeds together have {total} bytes");
}

#[test]
fn every_dictionary_is_used_and_has_the_format_of_libfuzzer() {
    let used = TARGETS.iter().map(|target| target.dictionary);
    let used: BTreeSet<String> = used.map(|name| format!("{name}.dict")).collect();
    assert_eq!(entries("dictionaries"), used);
    for name in used {
        let text = fs::read_to_string(folder("dictionaries").join(&name)).unwrap();
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in lines {
            assert!(is_entry(line), "{name}: {line}");
        }
    }
}

/// A text in quotes, in which `\\`, `\"` and `\xAB` are the only escapes, all other bytes are visible ASCII or a space.
fn is_entry(line: &str) -> bool {
    let inner = line
        .strip_prefix('"')
        .and_then(|line| line.strip_suffix('"'));
    let Some(mut rest) = inner.filter(|inner| !inner.is_empty()) else {
        return false;
    };
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '\\' if rest.starts_with("\\\\") || rest.starts_with("\\\"") => 2,
            '\\' if rest.starts_with("\\x") => 4,
            ' ' | '!' | '#'..='[' | ']'..='~' => 1,
            _ => return false,
        };
        let Some((escape, after)) = rest.split_at_checked(length) else {
            return false;
        };
        if length == 4 && u8::from_str_radix(&escape[2..], 16).is_err() {
            return false;
        }
        rest = after;
    }
    true
}
