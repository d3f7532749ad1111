//! One reading of all secrets. Each namespace has a turn of its own, beside the others': what Vault answers slowly, or
//! not at all, delays only those who share its namespace, and of them nobody twice in a row.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use merlon_compile::Granted;
use merlon_config::name::Namespace;
use tokio::time::{Instant, timeout};

/// For one reading.
const PATIENCE: Duration = Duration::from_secs(5);
/// For those of one namespace; a reading that began before it is over may still end.
const TURN: Duration = Duration::from_secs(5);
/// Namespaces whose turn it is at the same time.
const AT_ONCE: usize = 32;

/// Where each namespace begins the next time: with those that were not reached.
#[derive(Debug, Default)]
pub(super) struct Begin(BTreeMap<Namespace, Granted>);

/// What became of one of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found<T> {
    Read(Granted, Result<T, String>),
    /// The turn was over before: with this one the next begins.
    Later(Granted),
}

impl Begin {
    pub(super) fn with(&mut self, later: Granted) {
        self.0.insert(later.name.namespace.clone(), later);
    }

    /// Reads all of `wanted`, in no order.
    pub(super) fn round<'a, T: Send + 'a, F>(
        &mut self,
        wanted: &BTreeSet<Granted>,
        read: impl Fn(Granted) -> F + Copy + Send + 'a,
    ) -> impl Stream<Item = Found<T>> + Send + 'a
    where
        F: Future<Output = Result<T, String>> + Send + 'a,
    {
        let mut turns: BTreeMap<&Namespace, Vec<Granted>> = BTreeMap::new();
        for granted in wanted {
            let turn = turns.entry(&granted.name.namespace).or_default();
            turn.push(granted.clone());
        }
        for (namespace, turn) in &mut turns {
            if let Some(first) = self.0.remove(namespace) {
                let before = turn.partition_point(|other| *other < first);
                turn.rotate_left(before);
            }
        }
        let turns = turns.into_values().map(|turn| self::turn(turn, read));
        let turns: Vec<_> = turns.collect();
        stream::iter(turns).flatten_unordered(AT_ONCE)
    }
}

fn turn<'a, T: Send + 'a, F>(
    all: Vec<Granted>,
    read: impl Fn(Granted) -> F + Copy + Send + 'a,
) -> BoxStream<'a, Found<T>>
where
    F: Future<Output = Result<T, String>> + Send + 'a,
{
    let begin = (all.into_iter(), None);
    let next = move |(mut rest, end): (std::vec::IntoIter<Granted>, Option<Instant>)| async move {
        let granted = rest.next()?;
        let now = Instant::now();
        let end = end.unwrap_or(now + TURN);
        if now >= end {
            let none = Vec::new().into_iter();
            return Some((Found::Later(granted), (none, Some(end))));
        }
        let read = timeout(PATIENCE, read(granted.clone())).await;
        let read = read
            .unwrap_or_else(|_| Err(format!("no answer within {} seconds", PATIENCE.as_secs())));
        Some((Found::Read(granted, read), (rest, Some(end))))
    };
    stream::unfold(begin, next).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(name: &str) -> Granted {
        Granted {
            name: name.parse().unwrap(),
            path: "p".to_owned(),
        }
    }

    fn all(names: &[&str]) -> BTreeSet<Granted> {
        names.iter().map(|name| granted(name)).collect()
    }

    /// A Vault that answers for all but those whose name begins with `hangs`.
    async fn vault(granted: Granted) -> Result<(), String> {
        if granted.name.name.as_str().starts_with("hangs") {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// Names, in order of their answers, and after how long.
    async fn names(begin: &mut Begin, wanted: &BTreeSet<Granted>) -> Vec<(String, u64)> {
        let started = Instant::now();
        let mut found = Box::pin(begin.round(wanted, vault));
        let (mut names, mut later) = (Vec::new(), Vec::new());
        while let Some(found) = found.next().await {
            match found {
                Found::Read(granted, _) => {
                    names.push((granted.name.to_string(), started.elapsed().as_secs()));
                }
                Found::Later(granted) => later.push(granted),
            }
        }
        drop(found);
        later.into_iter().for_each(|granted| begin.with(granted));
        names
    }

    fn read(name: &str, after: u64) -> (String, u64) {
        (name.to_owned(), after)
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_whose_secrets_hang_delays_no_other() {
        let hanging: Vec<String> = (0..100).map(|n| format!("a/hangs-{n:02}")).collect();
        let mut wanted = all(&hanging.iter().map(String::as_str).collect::<Vec<_>>());
        wanted.extend(all(&["b/one", "b/two", "c/one"]));
        let names = names(&mut Begin::default(), &wanted).await;
        let mut at_once: Vec<_> = names.iter().filter(|(_, after)| *after == 0).collect();
        at_once.sort();
        let others = [read("b/one", 0), read("b/two", 0), read("c/one", 0)];
        assert_eq!(at_once, others.iter().collect::<Vec<_>>());
        // The whole is over when the patience with one is.
        let slow: Vec<_> = names.iter().filter(|(_, after)| *after > 0).collect();
        assert_eq!(slow, [&read("a/hangs-00", 5)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_holds_its_neighbours_up_once() {
        let wanted = all(&["a/before", "a/hangs", "a/then"]);
        let mut begin = Begin::default();
        let first = names(&mut begin, &wanted).await;
        assert_eq!(first, [read("a/before", 0), read("a/hangs", 5)]);
        let second = names(&mut begin, &wanted).await;
        let others = [read("a/then", 0), read("a/before", 0), read("a/hangs", 5)];
        assert_eq!(second, others);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_to_begin_and_is_no_more_leaves_it_to_the_next() {
        let mut begin = Begin::default();
        begin.with(granted("a/gone"));
        let names = names(&mut begin, &all(&["a/first", "a/other"])).await;
        assert_eq!(names, [read("a/other", 0), read("a/first", 0)]);
    }
}
