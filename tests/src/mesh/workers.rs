//! Which worker of a proxy serves which connection: each worker's runtime has an epoll instance of its own.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    net::SocketAddr,
    path::PathBuf,
};

/// The number of established connections to `to` in each epoll instance of the process that has any.
pub(super) fn connections(pid: u32, to: SocketAddr) -> Vec<usize> {
    let established = established(to);
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let files: Vec<_> = fs::read_dir(folder.join("fd"))
        .expect("the process runs")
        .filter_map(|file| {
            let file = file.ok()?;
            let target = fs::read_link(file.path()).ok()?;
            let number = file.file_name().into_string().ok()?;
            Some((number, target.to_str()?.to_owned()))
        })
        .collect();
    let mine: HashSet<_> = files
        .iter()
        .filter(|(_, target)| established.contains(target))
        .map(|(number, _)| number.as_str())
        .collect();
    files
        .iter()
        .filter(|(_, target)| target == "anon_inode:[eventpoll]")
        .filter_map(|(number, _)| fs::read_to_string(folder.join("fdinfo").join(number)).ok())
        // `tfd:        7 events: …` for each registered file.
        .map(|info| {
            let registered = info.lines().filter_map(|line| line.strip_prefix("tfd:"));
            registered
                .filter_map(|rest| rest.split_whitespace().next())
                .filter(|number| mine.contains(number))
                .map(str::to_owned)
                .collect::<BTreeSet<_>>()
        })
        .filter(|connections| !connections.is_empty())
        // A process may have several descriptors of one epoll instance.
        .collect::<BTreeSet<_>>()
        .iter()
        .map(BTreeSet::len)
        .collect()
}

/// The established sockets of this machine whose local address is `to`, as the links of open files name them.
fn established(to: SocketAddr) -> HashSet<String> {
    const ESTABLISHED: &str = "01";
    let local = match to {
        SocketAddr::V4(to) => format!(
            "{:08X}:{:04X}",
            u32::from_ne_bytes(to.ip().octets()),
            to.port()
        ),
        SocketAddr::V6(_) => panic!("only for IPv4"),
    };
    let table = fs::read_to_string("/proc/net/tcp").expect("the table of sockets");
    let rows = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1) == Some(&local.as_str()) && row.get(3) == Some(&ESTABLISHED))
        .filter_map(|row| Some(format!("socket:[{}]", row.get(9)?)))
        .collect()
}
