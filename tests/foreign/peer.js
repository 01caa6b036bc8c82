// SPDX-FileCopyrightText: The tavrida authors
// SPDX-License-Identifier: Apache-2.0
// The client of Node's amqplib: node peer.js tell|ask|listen|serve URL JSON
"use strict";
const amqplib = require("amqplib");

const [what, url, json] = process.argv.slice(2);
const told = JSON.parse(json);
const say = (data) => console.log(JSON.stringify(data));

function publish(channel, more) {
  const options = { headers: told.headers, ...more };
  if (told.content_type !== null) options.contentType = told.content_type;
  if (told.correlation_id !== null) options.correlationId = told.correlation_id;
  if (told.type !== null) options.type = told.type;
  const body = Buffer.from(told.body, "base64");
  channel.publish(told.exchange, told.routing_key, body, options);
}

async function tell(connection) {
  const channel = await connection.createConfirmChannel();
  publish(channel, {});
  await channel.waitForConfirms();
}

async function ask(connection) {
  const channel = await connection.createChannel();
  let queue = "amq.rabbitmq.reply-to";
  if (!told.is_direct) ({ queue } = await channel.assertQueue("", { exclusive: true }));
  const answer = await new Promise(async (resolve) => {
    await channel.consume(queue, resolve, { noAck: true });
    publish(channel, { replyTo: queue });
  });
  say({
    body: answer.content.toString("base64"),
    type: answer.properties.type,
    content_type: answer.properties.contentType,
    correlation_id: answer.properties.correlationId ?? null,
  });
}

async function listen(connection) {
  const channel = await connection.createChannel();
  await channel.assertExchange(told.exchange, "topic", { durable: true });
  const { queue } = await channel.assertQueue("", { exclusive: true });
  await channel.bindQueue(queue, told.exchange, told.key);
  await channel.consume(queue, (message) => {
    say({ body: message.content.toString("base64") });
    channel.ack(message);
  });
  say("ready");
  await new Promise(() => {});
}

async function serve(connection) {
  const channel = await connection.createChannel();
  await channel.assertExchange(told.exchange, "topic", { durable: true });
  await channel.assertQueue(told.queue, { durable: true });
  await channel.bindQueue(told.queue, told.exchange, "mirror.*");
  await channel.consume(told.queue, (message) => {
    const { payload } = JSON.parse(message.content);
    const { request_id } = message.properties.headers;
    const method = message.fields.routingKey.split(".")[1];
    let type = "error";
    let answer = {};
    if (method === "fails") answer = { class: "OutOfStock", message: "come again", code: 77 };
    else if (method !== "shrugs") [type, answer] = ["response", { echo: payload }];
    channel.publish("", message.properties.replyTo, Buffer.from(JSON.stringify(answer)), {
      contentType: "application/json",
      correlationId: message.properties.correlationId,
      headers: request_id === undefined ? {} : { request_id },
      type,
    });
    channel.ack(message);
  });
  say("ready");
  await new Promise(() => {});
}

(async () => {
  const connection = await amqplib.connect(url);
  await { tell, ask, listen, serve }[what](connection);
  await connection.close();
})();
