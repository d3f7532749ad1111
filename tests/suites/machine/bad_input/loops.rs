//! Requests that lead back to the proxy that received them.

use merlon_tests::{Client, refusals::Refusals};

use super::mesh;

#[tokio::test]
async fn a_request_for_an_address_of_the_proxy_itself_is_refused_however_it_is_written() {
    let mesh = mesh().await;
    let (web, orders) = (mesh.sidecar("web"), mesh.sidecar("orders"));
    let (outbound, inbound) = (web.outbound().port(), web.inbound().port());
    let own = [
        format!("127.0.0.1:{outbound}"),
        format!("0.0.0.0:{outbound}"),
        format!("[::ffff:127.0.0.1]:{outbound}"),
        format!("[::ffff:0.0.0.0]:{outbound}"),
        format!("127.0.0.1:{inbound}"),
        format!("127.0.0.1:{}", web.admin().port()),
    ];
    let program = Client::new(web.outbound(), "shop");
    let rows = own.map(|host| {
        let call = program.get(&host, "/loop");
        (host, call, 508, "upstream.loop")
    });
    Refusals::by(web, mesh.app("orders")).each(rows).await;

    // Over another proxy, which is asked for its own address.
    let others = format!("127.0.0.1:{}", orders.outbound().port());
    let call = program.get(&others, "/loop");
    Refusals::by(orders, mesh.app("orders"))
        .each([("another proxy", call, 508, "upstream.loop")])
        .await;
}
