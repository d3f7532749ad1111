//! TCP connections.

use merlon_tests::{Mesh, client::connect, postgres::Postgres, redis::Redis};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::mesh;

#[tokio::test]
async fn opaque_bytes_go_both_ways_until_both_sides_have_closed() {
    let mesh = mesh().await;
    let mut stream = connect(mesh.outbound("web", "echo")).await;
    let sent: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let (mut read, mut write) = stream.split();
    let mut back = Vec::new();
    let sending = async {
        write.write_all(&sent).await.unwrap();
        // Half closed: the bytes still on their way back must arrive.
        write.shutdown().await.unwrap();
    };
    tokio::join!(sending, async {
        read.read_to_end(&mut back).await.unwrap()
    });
    assert!(back == sent, "{} bytes came back", back.len());
}

#[tokio::test]
async fn the_first_bytes_of_a_server_that_speaks_first_arrive() {
    let mesh = mesh().await;
    let mut stream = connect(mesh.outbound("web", "mail")).await;
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
}

#[tokio::test]
async fn redis_and_postgres_clients_work_through_two_sidecars() {
    let (redis, postgres) = tokio::join!(Redis::start(), Postgres::start());
    let mesh = Mesh::new()
        .service_at("cache", "tcp", redis.address())
        .allow_tcp("web")
        .service_at("ledger", "tcp", postgres.address())
        .allow_tcp("web")
        .start()
        .await;

    let cache = mesh.outbound("web", "cache");
    assert_eq!(
        redis.cli(cache, &["SET", "order:1", "paid"]).await.out,
        "OK\n"
    );
    assert_eq!(
        redis.cli(redis.address(), &["GET", "order:1"]).await.out,
        "paid\n"
    );

    let ledger = mesh.outbound("web", "ledger");
    let made = postgres
        .psql(
            ledger,
            "create table entries as select * from generate_series(1, 1000) n",
        )
        .await;
    assert!(made.status.success(), "{made:?}");
    assert_eq!(
        postgres
            .psql(ledger, "select sum(n) from entries")
            .await
            .out,
        "500500\n"
    );
    assert_eq!(
        postgres
            .psql(postgres.address(), "select count(*) from entries")
            .await
            .out,
        "1000\n"
    );

    mesh.log_where("cache", "src", &merlon_tests::mesh::identity("web"))
        .await
        .has("reason", "");
}
