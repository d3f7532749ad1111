//! The guard in front of hyper.

use std::cell::OnceCell;

use merlon_proxy::protocol::http1::{
    Chunked, Framing, GuardedStream, MAX_EXTENSIONS, MAX_FIELDS, MAX_HEAD, MAX_TARGET,
    MAX_TRAILER_FIELDS, MAX_TRAILERS, Violation, find_end, may_be_trailer, parse,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    runtime::{Builder, Runtime},
};

use crate::input::Input;

/// httparse reads every valid head the same way: the same fields, the same end, one framing.
pub(crate) fn head(bytes: &[u8]) {
    let end = match find_end(bytes, 0) {
        Ok(Some(end)) => end,
        Ok(None) => return assert!(bytes.len() <= MAX_HEAD, "an endless head is held back"),
        Err(_) => return,
    };
    assert!(end <= MAX_HEAD);
    let head = &bytes[..end];
    let Ok(read) = parse(head) else { return };
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    assert_eq!(
        request.parse(bytes),
        Ok(httparse::Status::Complete(end)),
        "at most {MAX_FIELDS} fields, and the same end"
    );
    assert!(request.path.is_some_and(|path| path.len() <= MAX_TARGET));
    let all = |name: &str| {
        let named = request.headers.iter();
        let named = named.filter(|field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value).collect::<Vec<_>>()
    };
    assert_eq!(all("host").len(), 1);
    match read.framing {
        Framing::Chunked => {
            assert_eq!(all("transfer-encoding").len(), 1);
            assert!(all("content-length").is_empty());
        }
        Framing::Length(length) => {
            assert!(all("transfer-encoding").is_empty());
            let written = all("content-length");
            assert!(written.len() <= 1);
            let expected = written
                .first()
                .map_or("0", |text| str::from_utf8(text).unwrap());
            assert_eq!(length.to_string(), expected);
        }
    }
    if read.upgrade {
        assert!(!all("upgrade").is_empty() && !all("connection").is_empty());
        assert_eq!(request.version, Some(1));
    }
}

/// The guard's output and the violation that it finds do not depend on how the bytes are split, and what it passes on
/// is what it was given.
pub(crate) fn guard(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = usize::from(input.byte()).max(1);
    let bytes = input.rest();
    let whole = guarded(bytes, bytes.len().max(1));
    let pieces = guarded(bytes, size);
    assert_eq!(whole.1, pieces.1);
    if whole.1.is_none() {
        assert_eq!(whole.0, pieces.0);
        assert!(bytes.starts_with(&whole.0));
    }
}

/// Reads through a pipe that holds `size` bytes at a time. Each request gets a response without a protocol switch as
/// soon as it is read.
fn guarded(bytes: &[u8], size: usize) -> (Vec<u8>, Option<Violation>) {
    thread_local! {
        static RUNTIME: OnceCell<Runtime> = const { OnceCell::new() };
    }
    let run = async {
        let (mut client, server) = duplex(size);
        let (mut strict, guard) = GuardedStream::new(server, Vec::new());
        let write = async {
            let _ = client.write_all(bytes).await;
            let _ = client.shutdown().await;
            std::future::pending::<()>().await;
        };
        let read = async {
            let (mut out, mut space) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                match strict.read(&mut space).await {
                    Ok(0) | Err(_) => return out,
                    Ok(read) => out.extend_from_slice(&space[..read]),
                }
                guard.answered(guard.heads(), false);
                if guard.broken().is_some() {
                    return out;
                }
            }
        };
        tokio::select! {
            () = write => (Vec::new(), None),
            out = read => (out, guard.broken()),
        }
    };
    RUNTIME.with(|runtime| {
        let new = || Builder::new_current_thread().enable_time().build();
        runtime
            .get_or_init(|| new().expect("a runtime"))
            .block_on(run)
    })
}

/// A chunked body ends where the model says, and nowhere else, however the bytes are split.
pub(crate) fn chunked(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let size = usize::from(input.byte()).max(1);
    let bytes = input.rest();
    let mut whole = Chunked::default();
    let followed = whole.follow(bytes);
    let end = followed.ok().filter(|_| whole.ended());
    assert_eq!(end, model(bytes), "the end of the body");

    let mut body = Chunked::default();
    let mut read = 0;
    let mut pieces = bytes.chunks(size);
    let failed = pieces.find_map(|piece| match body.follow(piece) {
        Ok(here) => {
            read += here;
            None
        }
        Err(violation) => Some(violation),
    });
    assert_eq!(failed.map_or(Ok(read), Err), followed);
}

/// Where a chunked body ends (RFC 9112 §7.1), with Merlon's limits. `None` if it is not valid or not complete.
fn model(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut extensions = 0;
    loop {
        let line = line(bytes, &mut at)?;
        let end = line.iter().position(|byte| *byte == b';');
        let (size, extension) = line.split_at(end.unwrap_or(line.len()));
        extensions += extension.len();
        let visible = |byte: &u8| matches!(byte, b'\t' | 0x20..=0x7e);
        if !(1..=15).contains(&size.len())
            || !size.iter().all(u8::is_ascii_hexdigit)
            || !extension.iter().all(visible)
            || extensions > MAX_EXTENSIONS
        {
            return None;
        }
        let size = u64::from_str_radix(str::from_utf8(size).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        at = at.checked_add(usize::try_from(size).ok()?)?;
        if bytes.get(at..at.checked_add(2)?)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    let (mut fields, mut length) = (0, 0);
    loop {
        let line = line(bytes, &mut at)?;
        if line.is_empty() {
            return Some(at);
        }
        fields += 1;
        length += line.len();
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = line.split_at(colon);
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^`|~".contains(byte);
        let text = |byte: &u8| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f);
        if name.is_empty()
            || !name.iter().all(token)
            || !value.iter().all(text)
            || !may_be_trailer(name)
            || fields > MAX_TRAILER_FIELDS
            || length > MAX_TRAILERS
        {
            return None;
        }
    }
}

/// The line at `at`, without its CR LF, and without any other CR or LF.
fn line<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let rest = bytes.get(*at..)?;
    let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
    let (line, ending) = rest.split_at(end);
    *at += end + 2;
    ending.starts_with(b"\r\n").then_some(line)
}
