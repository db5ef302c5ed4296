//! What the tests of pull secrets assume about the API server.

use crate::cluster::{Api, Cluster, RbacRule, Request, shared};
use crate::needs::{Need, all_here};
use jiff::SignedDuration;

#[test]
fn a_service_account_has_the_rights_that_it_was_given_and_no_others() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = shared();
    let namespace = cluster.namespace("rights");
    let other = cluster.namespace("rights");
    let account = cluster.service_account();
    let (verbs, resource, name) = ("get,patch", "secrets", Some("ecr-creds"));
    account.may(RbacRule { namespace: Some(&namespace), verbs, resource, name });
    let kubeconfig = account.kubeconfig();
    let may = |verb: &str, namespace: &str| {
        let arguments = ["auth", "can-i", verb, "secrets/ecr-creds", "--namespace", namespace];
        cluster.run(&kubeconfig, &arguments, "").status.success()
    };
    assert!(may("get", &namespace) && may("patch", &namespace));
    assert!(!may("create", &namespace) && !may("list", &namespace) && !may("get", &other));
}

#[test]
fn a_token_is_accepted_until_it_expires() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let account = shared().service_account();
    let now = ecr_node_agent::time::clock::now();
    for (end, accepted) in [(5, true), (-5, false)] {
        let kubeconfig = account.kubeconfig_with(&account.token_until(now + SignedDuration::from_mins(end)));
        let asked = Api::new(&kubeconfig).get("/api/v1/namespaces");
        let code = asked.err().map(|refused| refused.0);
        assert_eq!(code, Some(if accepted { 403 } else { 401 }), "{end} minutes");
    }
}

#[test]
fn a_restarted_api_server_keeps_its_state() {
    if !all_here(&[Need::ApiServer]) {
        return;
    }
    let cluster = Cluster::start();
    let namespace = cluster.namespace("kept");
    let account = cluster.service_account();
    account.may(RbacRule { namespace: None, verbs: "get", resource: "secrets", name: None });
    let kubeconfig = account.kubeconfig();
    let ask = || cluster.run(&kubeconfig, &["get", "secret", "absent", "--namespace", &namespace], "");

    cluster.stop_api_server();
    let refused = String::from_utf8(ask().stderr).unwrap();
    assert!(refused.contains("connection") && refused.contains("refused"), "{refused}");

    cluster.start_api_server();
    let missing = String::from_utf8(ask().stderr).unwrap();
    assert!(missing.contains("\"absent\" not found"), "{missing}");
    let request = Request {
        user: account.user(),
        verb: "get".to_owned(),
        namespace,
        resource: "secrets".to_owned(),
        name: "absent".to_owned(),
        code: 404,
        dry_run: false,
    };
    let start = std::time::Instant::now();
    while !cluster.requests().contains(&request) {
        assert!(start.elapsed().as_secs() < 60, "{:?}", cluster.requests());
    }

    // Its programs and files are gone when it is dropped.
    let folder = cluster.folder().to_owned();
    let address = ("127.0.0.1", cluster.port());
    drop(account);
    drop(cluster);
    assert!(!folder.exists());
    assert!(std::net::TcpStream::connect(address).is_err());
}
