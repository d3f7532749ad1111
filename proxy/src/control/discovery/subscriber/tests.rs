use merlon_api::seal_resource;

use super::*;
use crate::tests::fixtures::{key, manifest, orders, resources};

fn response(kind: ResourceKind, nonce: &str, resources: Vec<Resource>) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        nonce: nonce.to_owned(),
        resources,
        ..DeltaDiscoveryResponse::default()
    }
}

fn manifest_response(nonce: &str, of: &Resources) -> DeltaDiscoveryResponse {
    let (version, _, json) = manifest(of);
    let key = key(ResourceKind::Manifest, &orders().to_string());
    response(
        ResourceKind::Manifest,
        nonce,
        vec![seal_resource(&key, &version, &json)],
    )
}

fn sealed(of: &Resources, kind: ResourceKind) -> Vec<Resource> {
    let of_kind = of.iter().filter(|(key, _)| key.kind == kind);
    of_kind
        .map(|(key, held)| seal_resource(key, &held.version, &held.json))
        .collect()
}

/// A subscriber whose stream has started and whose first requests are taken.
fn started() -> Subscriber {
    let mut subscriber = Subscriber::new(orders());
    subscriber.begin(merlon_api::node("n", None, "0"));
    subscriber.take_requests();
    subscriber
}

/// Receives all resources of `state`; returns the requests.
fn receive_all(
    subscriber: &mut Subscriber,
    nonce: &str,
    state: &Resources,
) -> Vec<DeltaDiscoveryRequest> {
    subscriber.receive(manifest_response(nonce, state)).unwrap();
    for kind in NAMED {
        subscriber
            .receive(response(kind, "r", sealed(state, kind)))
            .unwrap();
    }
    subscriber.take_requests()
}

fn in_force(subscriber: &mut Subscriber, nonce: &str, state: &Resources) {
    receive_all(subscriber, nonce, state);
    let complete = subscriber.complete().unwrap();
    assert!(subscriber.accept(&complete));
    subscriber.take_requests();
}

fn answer_to<'a>(
    requests: &'a [DeltaDiscoveryRequest],
    nonce: &str,
) -> Option<&'a DeltaDiscoveryRequest> {
    requests
        .iter()
        .find(|request| request.response_nonce == nonce)
}

#[test]
fn the_first_request_names_the_node_and_subscribes_to_the_manifest() {
    let mut subscriber = Subscriber::new(orders());
    subscriber.begin(merlon_api::node("n", None, "0"));
    let requests = subscriber.take_requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].node.as_ref().unwrap().id, "n");
    assert_eq!(requests[0].resource_names_subscribe, [orders().to_string()]);
}

#[test]
fn a_manifest_adds_subscriptions_to_missing_resources_only() {
    let mut subscriber = started();
    subscriber
        .receive(manifest_response("1", &resources(&[])))
        .unwrap();
    let wanted: Vec<String> = subscriber
        .take_requests()
        .into_iter()
        .flat_map(|request| request.resource_names_subscribe)
        .collect();
    assert_eq!(wanted, ["mesh", "shop/orders", "shop/orders"]);
    assert!(subscriber.complete().is_none());
}

#[test]
fn an_incomplete_state_is_rejected_after_the_time_limit() {
    let state = resources(&[]);
    let mut subscriber = started();
    subscriber.receive(manifest_response("1", &state)).unwrap();
    subscriber
        .receive(response(
            ResourceKind::Mesh,
            "2",
            sealed(&state, ResourceKind::Mesh),
        ))
        .unwrap();
    assert!(subscriber.complete().is_none());
    subscriber.take_requests();

    subscriber.give_up();

    let requests = subscriber.take_requests();
    let refusal = answer_to(&requests, "1")
        .unwrap()
        .error_detail
        .as_ref()
        .unwrap();
    assert!(
        refusal
            .message
            .contains("2 resources of the manifest did not arrive"),
        "{}",
        refusal.message
    );
    assert!(!subscriber.is_current());
    let again = requests
        .iter()
        .filter(|request| !request.resource_names_subscribe.is_empty());
    assert_eq!(again.count(), 2);
}

#[test]
fn a_complete_state_is_acknowledged_only_once_it_is_in_force() {
    let mut subscriber = started();
    let requests = receive_all(&mut subscriber, "1", &resources(&[]));
    assert!(answer_to(&requests, "1").is_none());
    let complete = subscriber.complete().unwrap();
    assert!(subscriber.complete().is_none(), "it is returned once");
    assert!(subscriber.accept(&complete));
    let requests = subscriber.take_requests();
    assert!(answer_to(&requests, "1").unwrap().error_detail.is_none());
    assert!(subscriber.is_current());
}

#[test]
fn a_rejected_state_is_reported_with_the_reason_and_not_retried() {
    let mut subscriber = started();
    receive_all(&mut subscriber, "1", &resources(&[]));
    let complete = subscriber.complete().unwrap();
    subscriber.refuse(&complete, "orders.cedar:3:1: oops");
    let requests = subscriber.take_requests();
    assert_eq!(
        answer_to(&requests, "1")
            .unwrap()
            .error_detail
            .as_ref()
            .unwrap()
            .message,
        "orders.cedar:3:1: oops"
    );

    subscriber
        .receive(manifest_response("2", &resources(&[])))
        .unwrap();

    assert!(subscriber.complete().is_none());
    assert!(
        answer_to(&subscriber.take_requests(), "2")
            .unwrap()
            .error_detail
            .is_some()
    );
    assert!(!subscriber.is_current());
}

#[test]
fn a_resource_with_a_wrong_hash_is_rejected_and_dropped() {
    let state = resources(&[]);
    let mut subscriber = started();
    subscriber.receive(manifest_response("1", &state)).unwrap();
    let mut wrong = sealed(&state, ResourceKind::Mesh);
    wrong[0].resource.as_mut().unwrap().value = b"{}".to_vec();
    subscriber
        .receive(response(ResourceKind::Mesh, "2", wrong))
        .unwrap();
    let requests = subscriber.take_requests();
    assert!(
        answer_to(&requests, "2")
            .unwrap()
            .error_detail
            .as_ref()
            .unwrap()
            .message
            .contains("hash")
    );
    for kind in [ResourceKind::Workload, ResourceKind::Service] {
        subscriber
            .receive(response(kind, "3", sealed(&state, kind)))
            .unwrap();
    }
    assert!(subscriber.complete().is_none());
}

#[test]
fn unsolicited_resources_are_rejected_and_end_the_stream_after_a_limit() {
    let state = resources(&["shop/payments"]);
    let mut subscriber = started();
    let endless = || {
        response(
            ResourceKind::Destination,
            "9",
            sealed(&state, ResourceKind::Destination),
        )
    };
    let taken = (0..1_000)
        .take_while(|_| subscriber.receive(endless()).is_ok())
        .count();
    assert_eq!(taken, MAX_FAILURES);
    assert!(subscriber.held.is_empty());
}

#[test]
fn a_manifest_with_too_many_resources_is_rejected() {
    let names: Vec<String> = (0..=MAX_SUBSCRIPTIONS)
        .map(|n| format!("shop/s{n}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut subscriber = started();
    subscriber
        .receive(manifest_response("1", &resources(&names)))
        .unwrap();
    let requests = subscriber.take_requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].error_detail.is_some());
}

#[test]
fn the_manifest_of_another_proxy_is_rejected() {
    let (version, _, json) = manifest(&resources(&[]));
    let key = key(
        ResourceKind::Manifest,
        "spiffe://one.test/ns/shop/sa/payments",
    );
    let mut subscriber = started();
    let other = response(
        ResourceKind::Manifest,
        "1",
        vec![seal_resource(&key, &version, &json)],
    );
    subscriber.receive(other).unwrap();
    assert!(
        answer_to(&subscriber.take_requests(), "1")
            .unwrap()
            .error_detail
            .is_some()
    );
}

#[test]
fn a_new_stream_lists_present_resources_with_destinations_before_the_manifest() {
    let state = resources(&["shop/payments"]);
    let mut subscriber = started();
    subscriber.subscribe_to(&"shop/payments".parse().unwrap());
    in_force(&mut subscriber, "1", &state);

    subscriber.begin(merlon_api::node("n", None, "0"));

    let requests = subscriber.take_requests();
    let kinds: Vec<_> = requests
        .iter()
        .map(|request| ResourceKind::from_type_url(&request.type_url).unwrap())
        .collect();
    use ResourceKind::{Destination, Manifest, Mesh, Service, Workload};
    assert_eq!(kinds, [Mesh, Workload, Service, Destination, Manifest]);
    for request in &requests {
        assert_eq!(
            request.initial_resource_versions.len(),
            1,
            "{}",
            request.type_url
        );
    }
    assert!(requests[0].node.is_some() && requests[1].node.is_none());
}

#[test]
fn a_destination_is_subscribed_to_once_and_unsubscribed_if_it_does_not_exist() {
    let name: LookupKey = "shop/nosuch".parse().unwrap();
    let mut subscriber = started();
    assert!(subscriber.subscribe_to(&name) && subscriber.subscribe_to(&name));
    assert_eq!(subscriber.take_requests().len(), 1);
    let gone = DeltaDiscoveryResponse {
        removed_resources: vec!["shop/nosuch".to_owned()],
        ..response(ResourceKind::Destination, "1", Vec::new())
    };
    assert_eq!(subscriber.receive(gone).unwrap(), [name]);
    let requests = subscriber.take_requests();
    assert!(
        requests
            .iter()
            .any(|request| request.resource_names_unsubscribe == ["shop/nosuch"])
    );
    assert!(subscriber.lookups().is_empty());
}

#[test]
fn a_removed_lookup_is_unsubscribed_and_frees_its_slot() {
    let mut subscriber = started();
    let lookups =
        (0..MAX_LOOKUPS).map(|n| format!("192.0.2.1:{}", n + 1).parse::<LookupKey>().unwrap());
    let lookups: Vec<_> = lookups.collect();
    assert!(lookups.iter().all(|lookup| subscriber.subscribe_to(lookup)));
    let another: LookupKey = "shop/payments".parse().unwrap();
    assert!(!subscriber.subscribe_to(&another));
    subscriber.take_requests();
    subscriber.unsubscribe_from(&lookups[0]);
    assert!(subscriber.subscribe_to(&another));
    let requests = subscriber.take_requests();
    let mut gone = requests
        .iter()
        .map(|request| &request.resource_names_unsubscribe);
    assert!(gone.any(|names| *names == ["192.0.2.1:1"]));
}

#[test]
fn the_number_of_lookups_is_limited() {
    let mut subscriber = started();
    let accepted = (0..10_000)
        .take_while(|n| subscriber.subscribe_to(&format!("shop/s{n}").parse().unwrap()))
        .count();
    assert_eq!(accepted, MAX_LOOKUPS);
}

#[test]
fn resources_that_a_newer_state_does_not_contain_are_dropped_and_unsubscribed() {
    let mut subscriber = started();
    in_force(&mut subscriber, "1", &resources(&["shop/payments"]));
    receive_all(&mut subscriber, "2", &resources(&[]));
    let complete = subscriber.complete().unwrap();
    assert!(subscriber.accept(&complete));
    let requests = subscriber.take_requests();
    assert!(
        requests
            .iter()
            .any(|request| request.resource_names_unsubscribe == ["shop/payments"])
    );
    assert_eq!(subscriber.held.len(), 3);
}

#[test]
fn a_state_that_arrives_during_a_compilation_is_next_and_acknowledges_both() {
    let mut subscriber = started();
    receive_all(&mut subscriber, "1", &resources(&[]));
    let older = subscriber.complete().unwrap();
    let newer = resources(&["shop/payments"]);
    receive_all(&mut subscriber, "2", &newer);
    assert!(subscriber.accept(&older));
    assert!(answer_to(&subscriber.take_requests(), "1").is_none());
    let complete = subscriber.complete().unwrap();
    assert_eq!(complete.resources, newer);
    assert!(subscriber.accept(&complete));
    assert!(answer_to(&subscriber.take_requests(), "2").is_some());
}

#[test]
fn a_state_that_was_withdrawn_while_it_was_compiled_is_not_put_in_force() {
    let (state, changed) = (resources(&[]), resources(&["shop/payments"]));
    let mut subscriber = started();
    in_force(&mut subscriber, "1", &state);
    receive_all(&mut subscriber, "2", &changed);
    let withdrawn = subscriber.complete().unwrap();
    let requests = receive_all(&mut subscriber, "3", &state);
    assert!(answer_to(&requests, "3").unwrap().error_detail.is_none());

    assert!(!subscriber.accept(&withdrawn));
    subscriber.refuse(&withdrawn, "it does not compile either");

    assert!(subscriber.take_requests().is_empty(), "it is not answered");
    assert!(subscriber.is_current(), "the state in force is the newest");
    receive_all(&mut subscriber, "4", &changed);
    let again = subscriber.complete().unwrap();
    assert!(subscriber.accept(&again), "it is not rejected for good");
}

#[test]
fn a_state_of_an_earlier_stream_acknowledges_no_manifest_with_the_same_nonce() {
    let mut subscriber = started();
    receive_all(&mut subscriber, "1", &resources(&["shop/payments"]));
    let earlier = subscriber.complete().unwrap();
    subscriber.begin(merlon_api::node("n", None, "0"));
    subscriber.take_requests();
    let state = resources(&[]);
    subscriber.receive(manifest_response("1", &state)).unwrap();
    subscriber.take_requests();

    assert!(!subscriber.accept(&earlier));

    assert!(subscriber.take_requests().is_empty());
    let complete = subscriber.complete().unwrap();
    assert!(subscriber.accept(&complete));
    assert!(answer_to(&subscriber.take_requests(), "1").is_some());
}
