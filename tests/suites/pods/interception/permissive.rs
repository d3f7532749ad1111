//! Plain-text connections in a permissive namespace that send nothing.

use merlon_tests::{
    limit,
    pods::{Node, Pod, are_possible},
    until,
};
use tokio::io::AsyncReadExt as _;

use super::{ORDERS, OUTSIDER, documents};

const PERMIT: &str =
    "@id(\"anonymous\") permit (principal == Anonymous::\"peer\", action, resource);";

/// The first bytes that arrive at a client that sends nothing; none if the connection is closed.
async fn first_bytes(client: &Pod, server: &Pod, port: u16) -> Vec<u8> {
    let mut stream = client.connect(server.at(port)).unwrap();
    let mut bytes = vec![0; 9];
    let read = limit("an answer or the end", stream.read(&mut bytes)).await;
    // A reset is an end too.
    bytes.truncate(read.unwrap_or(0));
    bytes
}

#[tokio::test]
async fn a_plain_connection_without_a_first_byte_is_closed_or_its_server_speaks_first() {
    if !are_possible() {
        return;
    }
    let database = "    @id(\"database\")";
    let anonymous = format!("    {PERMIT}\n{database}");
    let documents = documents().replace(database, &anonymous);
    let node = Node::start(", permissiveNamespaces: [shop]", &documents).await;
    node.limit_sidecars("firstByteTimeout: 50ms");
    let orders = node.meshed("orders", ORDERS, &[]).await;
    let outsider = node.pod("outsider", OUTSIDER);
    let (http, bytes) = (orders.http(8080), orders.tcp_server_first(5432));

    // A client that sends a request gets an answer, so the silence is what closes the other connection.
    let answer = outsider.get(orders.at(8080), "orders", "/").await.unwrap();
    answer.is_ok();
    assert_eq!(first_bytes(&outsider, &orders, 8080).await, b"");
    assert_eq!(http.seen().len(), 1);

    // The policies decide about a client of a server that speaks first.
    assert_eq!(first_bytes(&outsider, &orders, 5432).await, b"220 ready");
    assert_eq!(bytes.seen().len(), 1);
    node.edit(PERMIT, "");
    until("the permit is gone", async || {
        first_bytes(&outsider, &orders, 5432).await.is_empty()
    })
    .await;
    let before = bytes.seen().len();
    assert_eq!(first_bytes(&outsider, &orders, 5432).await, b"");
    assert_eq!(bytes.seen().len(), before);
    let line = orders.log_where("reason", "authz.denied").await;
    line.has("direction", "inbound").has("protocol", "tcp");
}
