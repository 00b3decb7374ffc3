package org.json

class JSONArray {
    fun getInt(index: Int): Int = TODO()
}

class JSONObject(json: String) {
    fun opt(name: String?): Any? = TODO()

    fun has(name: String?): Boolean = TODO()

    fun getInt(name: String): Int = TODO()

    fun optInt(name: String?, fallback: Int): Int = TODO()

    fun optString(name: String?, fallback: String): String = TODO()

    fun getJSONArray(name: String): JSONArray = TODO()

    fun getJSONObject(name: String): JSONObject = TODO()
}
