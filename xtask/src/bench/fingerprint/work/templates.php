<?php
mt_srand((int) $argv[1]);
while (true) {
    $rows = [];
    for ($i = 0; $i < 3000; $i++) {
        $rows[] = ["id" => mt_rand(), "name" => md5((string) mt_rand()), "price" => mt_rand() / 100];
    }
    usort($rows, fn ($a, $b) => strcmp($a["name"], $b["name"]));
    $page = "";
    foreach ($rows as $row) {
        $page .= sprintf("<td>%d</td><td>%s</td><td>%.2f</td>", $row["id"], htmlspecialchars($row["name"]), $row["price"]);
    }
    $size = strlen(preg_replace('/[0-9]+/', '#', $page));
}
